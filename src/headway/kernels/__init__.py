"""Native kernels: `cpu/` (C++20 behind one extension, chosen by instruction set at run time) and `gpu/` (Triton)."""
