"""Network families for images: plain PyTorch, published variants, official checkpoints, exact inference forms."""
