"""What commands print, rendered from plain values. Opens nothing."""
