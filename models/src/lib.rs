pub mod sliding_window;
