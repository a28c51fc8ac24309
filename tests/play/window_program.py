"""A program with a window: red, green while the key w is down; `python window_program.py [SECONDS UNTIL IT ENDS]`."""

from Xlib import XK, X, display

connection = display.Display()
screen = connection.screen()
red, green = (screen.default_colormap.alloc_color(*rgb).pixel for rgb in ((65535, 0, 0), (0, 65535, 0)))
window = screen.root.create_window(0, 0, 400, 300, 0, screen.root_depth, background_pixel=red)
window.change_attributes(event_mask=X.KeyPressMask | X.KeyReleaseMask | X.ExposureMask)
window.set_wm_name("red and green")
window.map()
pen = window.create_gc(foreground=red)
w = connection.keysym_to_keycode(XK.XK_w)
while True:
    event = connection.next_event()
    if event.type in (X.KeyPress, X.KeyRelease) and event.detail == w:
        pen.change(foreground=green if event.type == X.KeyPress else red)
    if not connection.pending_events():  # a key that is held repeats: up and down at once, which is no time to be red
        window.fill_rectangle(pen, 0, 0, 400, 300)
        connection.flush()
