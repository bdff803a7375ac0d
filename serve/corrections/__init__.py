"""What people say that an image really shows, kept for the next search."""
