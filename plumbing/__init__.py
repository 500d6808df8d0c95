"""What every trainer needs and no paper is about."""
