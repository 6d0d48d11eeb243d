"""MuJoCo locomotion families on the batch engine."""
