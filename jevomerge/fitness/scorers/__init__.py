"""Models that score pictures, alone or with a text: CLIP and what was trained on its embeddings.

    scorer = open_scorer("pickscore")                    # everything is checked, no weight is read
    params = scorer.load()
    told = scorer.told(texts, params)                    # (N, D), once per run
    scores = scorer.score(params, images, told[chosen])  # (B,): pure, on the device; `scorer` is a static argument

| kind | score | weights |
|---|---|---|
| `clip` | max(0, 100 cos(text, picture)) | openai/clip-vit-large-patch14, or any `CLIPModel` |
| `aesthetic` | LAION's predictor, V1 or V2: an affine map of the picture's embedding | converted; `clip` as above |
| `pickscore` | exp(logit_scale) cos(text, picture) | yuvalkirstain/PickScore_v1 |
| `hpsv2` | cos(text, picture); HPSv2's tables have 100 times as much | converted |

CLIP reads English: of a Japanese prompt the text that is told is its translation. What is published as a pickle alone
is converted once by its user, see experiments/convert_scorers.
"""
