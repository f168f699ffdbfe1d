"""Qwen2.5-VL: a tower of its own that looks at pictures of any size through windows, over a Qwen2 whose pairs of a
head turn by the time, row or column of a feature (Bai et al., 2025).
"""
