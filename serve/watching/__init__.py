"""What is counted and logged of each request, and how far confidences drift."""
