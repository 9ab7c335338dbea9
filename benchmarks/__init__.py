"""What the project claims of itself, measured: each file is one claim, printed with how it was measured."""
