"""What Hostler is measured against: the least that could be done (floors), and what people use instead (peers)."""
