"""PPO and RLOO on one shared backbone: advantages, objective, rewards, rollouts and the loop."""
