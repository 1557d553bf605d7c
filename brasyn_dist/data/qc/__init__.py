"""Quality control of cohort folders: measurements of each case, and anomalies of a cohort."""
