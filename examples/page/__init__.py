"""What app.py shows."""
