"""The program that trains the small networks which ship with the service. The service does not import it.

pictures ──▶ clips ──▶ latents (bank) ──▶ UNet
    └─────▶ patches (the VAE's encoder) ──▶ the VAE's decoder
"""
