"""What travels between processes: data frames (frame.py) and RPCs (method.py, and by caller)."""
