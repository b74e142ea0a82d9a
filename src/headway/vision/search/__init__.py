"""Architecture search: one space, one cost table and one supernet core; each system is a policy over them."""
