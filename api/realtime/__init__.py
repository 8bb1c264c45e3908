"""Live events: one reader of the event stream in each process, many clients."""
