"""What travels between processes: data frames (frame.py) and RPC messages (messages.py)."""
