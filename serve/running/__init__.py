"""The endpoint on Ray Serve: replicas, what stands before them, start and end."""
