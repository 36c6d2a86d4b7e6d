"""How jobs run side by side: what they may take, and what they and their flow tell each other."""
