"""Model families: each file reads one family's configuration and tensor names into an `Architecture`."""
