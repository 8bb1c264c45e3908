"""What happens because of time: the leader and its table of duties."""
