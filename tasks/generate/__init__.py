"""The pool: an autoencoder, a diffusion transformer on its latents, and the clips that they generate (S4)."""
