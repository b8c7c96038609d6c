"""Video-MME with the breakdowns of the LongVA paper: `videomme_longva` and `videomme_longva_subtitle`."""
