"""What YAML says of image pipelines, without the pipelines, which take seconds to import."""

from typing import Literal

MERGEABLE = ("unet", "text_encoder", "text_encoder_2", "vae")
MERGED = ("unet",)  # unless more are asked for
Rule = Literal["euler", "lightning", "lcm"]  # by which noise becomes a picture
