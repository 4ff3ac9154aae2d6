"""What a run does besides training: its folder, what the terminal shows, the artifacts of the test."""
