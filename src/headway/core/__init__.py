"""The six nouns (target, workload, budget, system, recipe, evidence) and the services under them; imports no torch."""
