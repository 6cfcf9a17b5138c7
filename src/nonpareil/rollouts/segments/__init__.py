"""Search while drawing: propose, score what stands so far, keep some, go on. One driver, four schedules."""
