"""Triton kernels, one file per system; equal to their reference under the Triton interpreter."""
