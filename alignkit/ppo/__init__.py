"""Train a policy with PPO or RLOO on one shared backbone, from sampling to saved adapter."""
