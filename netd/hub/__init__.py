"""Who is connected and who hears what; pure: no sockets, the clock is an argument."""
