"""Studies of a claim about heads against controls, and the tasks that they measure."""
