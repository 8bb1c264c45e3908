"""What runs on hosts: the worker, the agent, and the execution of commands."""
