"""Commands of the export package; light to import, the work is imported when it is asked for."""
