"""Networks that learn: teacher, experts, students, and the labels that they give."""
