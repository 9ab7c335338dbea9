"""Loss curves and schedules: records, forecasts, and the schedule that a law would choose."""
