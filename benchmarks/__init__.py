"""Side-by-side measurements against TRL: same process, weights, data and order, parity inside."""
