"""What was learned: adaptation curves, pictures, videos, adapted policies."""
