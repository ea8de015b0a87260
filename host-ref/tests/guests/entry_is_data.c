int pxg_guest_init_v1 = 1;
