"""Numbers computed from judged responses: metrics, intervals, alarms, promotion. Opens no file."""
