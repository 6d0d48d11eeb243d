"""Hold a pendulum at an angle that only the reward tells."""

import numpy as np

from metarl import TaskParameter, gym_family


def reward(step):
    """Squared distance on the unit circle to the task's angle (0 is upright), and a price on torque."""
    target = np.stack([np.cos(step.tasks["angle"]), np.sin(step.tasks["angle"])], axis=1)
    return -np.square(step.after[:, :2] - target).sum(axis=1) - 0.001 * np.square(step.actions[:, 0])


PendulumAngle = gym_family("Pendulum-v1", [TaskParameter("angle", -1.0, 1.0, "rad")], reward=reward, control_step=0.05)
