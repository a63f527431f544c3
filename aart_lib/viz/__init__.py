"""What is drawn: figures, the explorer."""
