"""What a run needs, found without running it: its programs are compiled from shapes, for devices that may be absent."""
