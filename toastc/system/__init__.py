"""The machine: errors a user can cause, files that are whole or absent, progress, memory, taking turns."""
