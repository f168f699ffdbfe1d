"""Qwen2.5-VL: a tower that looks at pictures of any size through windows, and positions in three rows."""
