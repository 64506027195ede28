"""Write-ups, paper and README, out of numbers, tables, figures and verdicts."""
