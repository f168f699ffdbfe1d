"""Stable Diffusion XL, 1.5 and 2: text encoders, U-Net, scheduler and autoencoder, put together as a pipeline."""
