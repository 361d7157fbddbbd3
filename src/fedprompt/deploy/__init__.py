"""Real federations: the folders of server and sites, the processes they run, and the rehearsal of it all."""
