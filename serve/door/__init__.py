"""Who may call: keys, AWS's signatures, rates."""
