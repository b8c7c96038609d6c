"""`longva_paper`: every task of the LongVA paper's tables and figures as one group, in four parts."""
