"""What a machine can do: facts and measurements (`probe`), rooflines, and predictions made from them."""
