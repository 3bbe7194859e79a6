"""What feeds PyTorch; public as ffs.torch. Only here and in client/checkpoint is torch imported."""
